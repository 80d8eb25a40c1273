"""What is wrong with a machine, or with an endpoint, and what to do about it: `parure doctor`."""
