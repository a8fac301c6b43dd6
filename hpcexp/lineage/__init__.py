"""Where a result comes from: code, environment, and the signature of what was asked."""
