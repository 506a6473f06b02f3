"""Who may ask, how much, and what a refusal looks like: raw ASGI, because it stands before every request."""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..params import Limits
from ..step1_requirements.checks import StepFailed

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SHORTEST_KEY = 16  # characters; shorter ones can be guessed
TITLES = {
    401: "Not allowed", 404: "Not found", 405: "Wrong method", 408: "Too slow", 413: "Too large", 415: "Wrong content type",
    422: "Not as the contract says", 500: "Failed", 503: "Not now",
}  # fmt: skip
JSON, PROBLEM = b"application/json", b"application/problem+json"
to_json: Callable[[Any], bytes] = TypeAdapter(Any).dump_json  # of the fastest serializer that is installed
log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets no answer, and why."""

    def __init__(self, status: int, detail: str, errors: list[dict[str, str]] | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.detail, self.errors, self.headers = status, detail, errors or [], headers or {}

    def body(self) -> bytes:
        """Problem details (RFC 9457)."""
        title = TITLES.get(self.status, "Refused")
        return to_json({"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, "errors": self.errors})


def not_as_agreed(error: ValidationError) -> Refused:
    """What does not fit, field by field; the values stay out."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:20]
    return Refused(422, "The request does not fit the contract", [{"field": ".".join(map(str, e["loc"])), "reason": e["msg"]} for e in found])


class Keys:
    """API keys from the variable API_KEYS (commas between them) and the file that API_KEYS_FILE names (one a line).

    Keys are held and compared as hashes, in constant time. The file is read again when it
    changes, so keys are rotated without a restart: add the new one, then take out the old.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = Path(environ["API_KEYS_FILE"]) if environ.get("API_KEYS_FILE") else None
        self.fixed = _hashed(environ.get("API_KEYS", "").split(","), "API_KEYS")
        self.stamp: Any = None
        self.hashes = self.fixed
        self.refresh()
        if not self.hashes:
            raise StepFailed(
                "serve: there are no API keys: put one into API_KEYS (`openssl rand -hex 16` makes one), or name a file of them in API_KEYS_FILE; "
                "or say out loud that anybody may ask: PARAMS__DEPLOYMENT__KEYS=none"
            )

    def refresh(self) -> None:
        """Read the file again if it is another than before; a file that says nothing leaves the old keys in place."""
        if self.path is None:
            return
        try:
            stamp = (self.path.stat().st_mtime_ns, self.path.stat().st_ino)
            if stamp == self.stamp:
                return
            found = _hashed(self.path.read_text(encoding="utf-8").splitlines(), str(self.path))
            if not found:
                raise StepFailed(f"{self.path} holds no keys")
            self.hashes, self.stamp = self.fixed + found, stamp
            log.warning("serve: %d API keys", len(self.hashes))
        except (OSError, ValueError, StepFailed) as error:
            if self.stamp is None:
                raise StepFailed(f"serve: API_KEYS_FILE: {error}") from None
            log.error("serve: API_KEYS_FILE: %s; the old keys stay", error)

    def let_in(self, header: bytes) -> bool:
        """Whether an Authorization header carries a key; takes as long for a wrong one as for a right one."""
        given, found = hashlib.sha256(header.removeprefix(b"Bearer ")).digest(), False
        for known in self.hashes:
            found |= hmac.compare_digest(given, known)
        return found


def _hashed(keys: list[str], where: str) -> list[bytes]:
    keys = [key.strip() for key in keys if key.strip()]
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise StepFailed(f"serve: {where} holds a key of fewer than {SHORTEST_KEY} characters; `openssl rand -hex 16` makes a good one")
    return [hashlib.sha256(key.encode()).digest() for key in keys]


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """A JSON body, whole.

    Raises:
        Refused: for another content type, and for a body that is too large or too slow.
    """
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON:
        raise Refused(415, "Send application/json")
    most, body, more = limits.body_kb * 1024, b"", True
    try:
        async with asyncio.timeout(limits.body_seconds):  # from the first byte on: who sends none would keep a place for ever
            while more and len(body) <= most:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(408, f"The body did not come within {limits.body_seconds:g} seconds", headers={"connection": "close"}) from None
    if len(body) > most:
        raise Refused(413, f"The body is larger than {limits.body_kb} KiB", headers={"connection": "close"})
    return bytes(body)


def security_headers(page: str) -> list[tuple[bytes, bytes]]:
    """What every answer carries; only the page's own script may run, and only this service is asked."""
    script = base64.b64encode(hashlib.sha256(re.findall(r"(?s)<script>(.*?)</script>", page)[0].encode()).digest()).decode()
    policy = f"default-src 'none'; connect-src 'self'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; base-uri 'none'; "
    policy += "form-action 'none'; frame-ancestors 'none'"
    return [
        (b"content-security-policy", policy.encode()), (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store"),
    ]  # fmt: skip
