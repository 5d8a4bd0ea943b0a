"""The report: a page on trained runs, with their numbers, charts and videos."""
