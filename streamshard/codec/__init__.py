"""What a part means: bytes to value and back. Nothing is ever unpickled."""
