"""Records -> one page of charts, with the same charts as pictures."""
