"""The object store of the tests: a real S3, which compares ETags as S3 does."""

from __future__ import annotations

import obstore
import pytest
from obstore.exceptions import BaseError

from tests.servers import ObjectStore


def test_it_keeps_objects_and_refuses_a_stale_etag(objectstore: ObjectStore) -> None:
    store = objectstore.store("here")
    obstore.put(store, "a", b"one")
    (listed,) = obstore.list(store).collect()
    assert (listed["path"], listed["size"]) == ("a", 3)
    obstore.put(store, "a", b"two")
    with pytest.raises(BaseError):
        obstore.get(store, "a", options={"if_match": listed["e_tag"]})
