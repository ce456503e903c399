"""Google Cloud Storage on this machine: gcp-storage-emulator, and what it lacks that tensorstore needs.

By the JSON API's reference: `ifGenerationMatch` and `ifGenerationNotMatch` on reads, uploads and deletions, the
generation in the header of a download, and an answer to several requests at once. Run it with a port and the name of a
bucket; it says `ready` when it listens.
"""

import functools
import http.server
import sys
import threading
from http import HTTPStatus

from gcp_storage_emulator.handlers import objects

storage_lock = threading.RLock()  # a handler may call another


def conditional(handler):
    """The handler, called where the request's conditions hold; one at a time, for what they say is of that moment."""

    @functools.wraps(handler)
    def answer(request, response, storage, *args, **kwargs):
        body = request.data  # read in any case: the client would still be sending it
        with storage_lock:
            found = generation(request, storage)
            wanted, unwanted = (request.query.get(f"ifGeneration{kind}", [""])[0] for kind in ("Match", "NotMatch"))
            if wanted not in ("", found):
                response.status = HTTPStatus.PRECONDITION_FAILED
            elif unwanted == found:
                response.status = HTTPStatus.NOT_MODIFIED
            else:
                handler(request, response, storage, *args, **kwargs)
                response["x-goog-generation"] = found
        del body

    return answer


def generation(request, storage):
    """The object's generation, 0 where there is no such object."""
    names = request.query.get("name") or [request.params.get("object_id")]
    return storage.objects.get(request.params["bucket_name"], {}).get(names[0], {}).get("generation", "0")


for name in ("insert", "upload_partial", "get", "download", "delete", "ls", "copy", "rewrite", "compose", "patch"):
    setattr(objects, name, conditional(getattr(objects, name)))


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    # After the handlers are replaced, for it takes them over when it is imported.
    from gcp_storage_emulator.server import create_server

    http.server.HTTPServer = Server
    with create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]):
        print("ready", flush=True)
        threading.Event().wait()
