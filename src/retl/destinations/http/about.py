"""What the page of `http` shows first: an example, and the keys of an operation and of `outcome`."""

from __future__ import annotations

from retl.destinations.api import About
from retl.destinations.http.body import Endpoint
from retl.destinations.http.rules import Rules

OPERATION, OUTCOME = "Keys of an operation", "Keys of `outcome`"
EXAMPLE = """\
# retl.yml
connections:
  newsletter:
    type: http
    base_url: "https://api.example.com"
    auth: {type: bearer, token: "${NEWSLETTER_TOKEN}"}
    limits: {requests: 100, per: 10s}

# syncs/subscribers.yml
source: {table: subscribers}
key: [user_id]
destination:
  connection: newsletter
  upsert: {method: PUT, path: "/v1/subscribers/{user_id}", row: {email: $email, attributes: $others}}
  delete: {method: DELETE, path: "/v1/subscribers/{user_id}"}
deletes: delete
"""

ABOUT = About(example=EXAMPLE, parts={OPERATION: Endpoint, OUTCOME: Rules})
