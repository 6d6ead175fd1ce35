"""What stands in for a Qdrant server: its REST interface, as the client calls it, over the client's own local mode.

It shows that addresses, keys, requests and answers travel as they should; not how a real server searches.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "secret"


def answered(client, method: str, path: list[str], body: dict):
    """The result of a request, as the client of a server would have it."""
    from qdrant_client import models

    match method, path:
        case "GET", ["collections"]:
            return client.get_collections()
        case "GET", ["collections", name]:
            return client.get_collection(name)
        case "GET", ["collections", name, "exists"]:
            return {"exists": client.collection_exists(name)}
        case "PUT", ["collections", name]:
            asked = models.CreateCollection(**body)
            return client.create_collection(name, asked.vectors, metadata=asked.metadata)
        case "PUT", ["collections", name, "points"]:
            return client.upsert(name, [models.PointStruct(**point) for point in body["points"]])
        case "POST", ["collections", name, "points", "count"]:
            return client.count(name)
        case "POST", ["collections", name, "points", "scroll"]:
            points, following = client.scroll(name, limit=body["limit"])
            return {"points": [point.model_dump() for point in points], "next_page_offset": following}
        case "POST", ["collections", name, "points", "query"]:
            asked = models.QueryRequest(**body)
            assert asked.params.exact
            return client.query_points(
                name, asked.query, query_filter=asked.filter, limit=asked.limit, with_vectors=asked.with_vector
            )


@contextmanager
def qdrant_server() -> Iterator[str]:
    """Its address, on a port of this machine; requests need KEY."""
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:", force_disable_check_same_thread=True)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            status, result = 401, None
            if self.headers.get("api-key") == KEY:
                path = self.path.split("?")[0].strip("/").split("/")
                status, result = 200, answered(client, self.command, path, body)
            if hasattr(result, "model_dump"):
                result = result.model_dump(mode="json")
            text = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        client.close()
