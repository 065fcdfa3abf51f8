"""MLflow: which store, and how it is filled from the trials' journals. Nothing else knows MLflow."""
