"""What the tests call a service with: clients that know nothing of easq, and a service in its own process."""
