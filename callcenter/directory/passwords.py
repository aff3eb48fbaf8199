"""Passwords: argon2id with the low-memory parameters of RFC 9106 section 4, always in a thread."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

LONGEST = 200
"""Characters; a longer password is refused before it costs anything."""
KNOWN_TO_ALL = frozenset({"demo"})
"""What is printed in our own documentation."""

_hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
# Somebody's who does not exist: refusing an unknown user takes as long as refusing a known one.
_NOBODY = (
    "$argon2id$v=19$m=65536,t=3,p=4$YWxsIHRoZSBzYW1lIHRvIHVz$Fk2yyeBIJUjNYJ5XqykOTpC3fVYEcQpWWPGZYEzoPTg"
)


async def hash_password(password: str) -> str:
    """ValueError for an empty or overlong password."""
    if not password or len(password) > LONGEST:
        raise ValueError(f"A password has 1 to {LONGEST} characters.")
    return await asyncio.to_thread(_hasher.hash, password.encode(errors="surrogatepass"))


async def matches(password: str, stored: str | None) -> bool:
    """Whether this is the password; None or an empty hash costs the same time and matches nothing."""
    right = await asyncio.to_thread(_verify, stored or _NOBODY, password[:LONGEST])
    return right and bool(stored) and len(password) <= LONGEST


def is_outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def _verify(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password.encode(errors="surrogatepass"))
    except (VerificationError, InvalidHashError):
        return False
