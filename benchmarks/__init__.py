"""One program a claim. Each prints a table with its data, n, spread, hardware and date."""
