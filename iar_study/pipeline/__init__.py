"""What is made: products that trials share, trainings and measurements, their identities, and where they are kept."""
