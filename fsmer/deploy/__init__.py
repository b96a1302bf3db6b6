"""What a deployer calls: predict on recordings, explain an answer, prepare media for models."""
