"""A gRPC client without a proxy: it finds its servers by xDS, and knows no generated code.

Reads one JSON object a line, {"target", "count", "metadata", "timeout"}, makes that many unary calls one after the other,
and prints what came back, {"answers": {TEXT: TIMES}, "errors": {"CODE": TIMES}, "details": LAST_ERROR}. Channels live
as long as the process. The bootstrap is where gRPC looks for it: GRPC_XDS_BOOTSTRAP.
"""

import collections
import json
import sys

import grpc


def main():
    channels = {}
    for line in sys.stdin:
        order = json.loads(line)
        target = order["target"]
        if target not in channels:
            channels[target] = grpc.insecure_channel(target)
        call = channels[target].unary_unary("/mesozoic.test.Echo/Call")
        answers, errors, details = collections.Counter(), collections.Counter(), ""
        for _ in range(order.get("count", 1)):
            try:
                metadata = list(order.get("metadata", {}).items())
                answer = call(b"", timeout=order.get("timeout", 20), metadata=metadata)
                answers[answer.decode()] += 1
            except grpc.RpcError as error:
                errors[error.code().name] += 1
                details = error.details()
        print(json.dumps({"answers": answers, "errors": errors, "details": details}), flush=True)


if __name__ == "__main__":
    main()
