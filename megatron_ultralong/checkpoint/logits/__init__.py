"""What two models compute, compared."""
