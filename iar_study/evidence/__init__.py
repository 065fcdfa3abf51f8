"""What was found: results as tidy frames, statistics, the rules of claims and plans, two stores beside each other,
the paper's published numbers, and results as one file. Nothing is drawn or written here."""
