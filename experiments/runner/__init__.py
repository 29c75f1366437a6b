"""Run experiments cell by cell, keep a file for each, and write the page from the files."""
