"""Published ways to ask a promptable network about objects whose masks are known, and how its answers are scored."""
