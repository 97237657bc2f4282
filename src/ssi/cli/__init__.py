"""The command line: one module per verb; rows in, table or JSON out."""
