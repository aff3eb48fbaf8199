"""An asyncio SIP/RTP phone: test callers, the demo and the load generator."""

from callcenter.phone.g711 import Codec, Pcm
from callcenter.phone.phone import Call, CallState, Phone, Side, SipRefused
from callcenter.phone.rtp import Pacer, Packet

__all__ = ["Call", "CallState", "Codec", "Pacer", "Packet", "Pcm", "Phone", "Side", "SipRefused"]
