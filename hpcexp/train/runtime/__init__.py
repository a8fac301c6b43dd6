"""What a training process sets up before it trains."""
