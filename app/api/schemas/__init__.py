"""What bodies look like: `requests` as clients send them, `answers` as they get them."""
