"""What every registered method owes its user, as plain functions and as tests that call them."""
