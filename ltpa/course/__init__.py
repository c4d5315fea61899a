"""What the notebooks of the course use, one module for each and the parts that they share; nothing else imports it."""
