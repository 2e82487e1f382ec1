"""One file for each page of results that can be run again."""
