"""Scrapes a page of metrics as a Prometheus does, and reads it with prometheus_client's strict OpenMetrics parser.

Prints JSON: the number of samples, families with their types, and how many bytes each encoding took. An answer that is
not in the form asked for, or that differs between encodings, is an error.
"""

import argparse
import gzip
import json
import urllib.request
import zlib

import brotli
import zstandard
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as classic

DECODE = {
    "identity": lambda body: body,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}


def get(url, accept, encoding):
    request = urllib.request.Request(url, headers={"Accept": accept, "Accept-Encoding": encoding})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers, answer.read()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    url = parser.parse_args().url
    sizes, families, samples = {}, {}, 0
    for encoding, decode in DECODE.items():
        headers, body = get(url, "application/openmetrics-text;version=1.0.0", encoding)
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0"), headers
        assert headers.get("Content-Encoding", "identity") == encoding, headers
        sizes[encoding] = len(body)
        text = decode(body).decode()
        assert text.endswith("# EOF\n")
        families = {family.name: family for family in open_metrics(text)}
        samples = sum(len(family.samples) for family in families.values())
    headers, body = get(url, "text/plain", "identity")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8", headers
    plain = {family.name for family in classic(body.decode())}
    assert plain == set(families), plain ^ set(families)
    labels = {
        name: sorted({label for sample in family.samples for label in sample.labels})
        for name, family in families.items()
    }
    types = {name: family.type for name, family in families.items()}
    undocumented = [name for name, family in families.items() if not family.documentation]
    print(json.dumps({"samples": samples, "types": types, "labels": labels, "sizes": sizes,
                      "undocumented": undocumented}))


main()
