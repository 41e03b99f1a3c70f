"""What a cloud tells the machines that it rents out: their zone, and that it takes them back."""
