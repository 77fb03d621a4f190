"""Light curves as surveys publish them: strict readers."""
