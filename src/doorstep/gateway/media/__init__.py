"""Media that take minutes: durable jobs in front of the services that make them."""
