"""Batch jobs: a table of pictures to make, any number of servers, and nothing lost, torn or made twice."""
