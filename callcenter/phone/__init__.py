"""An asyncio SIP/RTP phone: test callers, the demo and the load generator."""
