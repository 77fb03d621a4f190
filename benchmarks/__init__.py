"""What each part costs (`performance`), and studies whose records the book quotes (`studies`)."""
