"""The report on the committed result files: an HTML page, and what the README says of speed."""
