"""Metrics of one set of samples or predictions, and the features that they are measured in. No study is known here."""
