"""Consumes Walgate's events: resolves claim checks, verifies them, and takes each event once.

    python consumer.py --brokers kafka:9092 --topic shop.public.media --group media --database media.db

Credentials and region are found as AWS tools find them; AWS_ENDPOINT_URL_S3 names another S3 server. The database is
SQLite here; any that has transactions will do. What is explained in docs/consuming.md is not explained here.
"""

import argparse
import base64
import hashlib
import json
import sqlite3
from urllib.parse import quote, unquote

import boto3
from confluent_kafka import Consumer, KafkaError, KafkaException

SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS received (position INTEGER PRIMARY KEY, type TEXT, aggregate_id TEXT, event TEXT NOT NULL);
"""


def fetch(claim, s3):
    """The object behind a reference; whatever is not exactly what was published is an error."""
    uri = claim["uri"]
    if uri.startswith("s3://"):
        bucket, key = uri.removeprefix("s3://").split("/", 1)  # the key stands as it is: %2F is part of it
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    else:
        with open(unquote(uri.removeprefix("file://")), "rb") as file:
            body = file.read()
    if len(body) != claim["bytes"] or hashlib.sha256(body).hexdigest() != claim["sha256"]:
        raise ValueError(f"{uri} is not what was published")
    return body


def is_reference(value, uri_end):
    """A json column of your own may look like a reference: its uri would not end with this event and this column."""
    if not isinstance(value, dict) or list(value) != ["$claim"] or not isinstance(value["$claim"], dict):
        return False
    uri = value["$claim"].get("uri")
    if not isinstance(uri, str):
        return False
    return (uri if uri.startswith("s3://") else unquote(uri)).endswith(uri_end)


def inline(claim, s3):
    """A column's object as its value would stand in the event."""
    body = fetch(claim, s3)
    if claim["content_type"] == "application/json":
        return json.loads(body)
    if claim["content_type"] == "application/octet-stream":
        return base64.b64encode(body).decode()
    return body.decode()


def resolve(event, s3):
    """The event as it would be without claim checks."""
    if event["claim"] is not None:
        event = json.loads(fetch(event["claim"], s3))
    for part, mark in (("data", ""), ("before", ".before")):
        row = event[part] if isinstance(event[part], dict) else {}
        for column, value in row.items():
            name = "%6Ason" if column == "json" else quote(column, safe="").replace(".", "%2E")
            if is_reference(value, f"/{quote(event['id'], safe='')}{mark}.{name}"):
                row[column] = inline(value["$claim"], s3)
    return event


def apply(database, event):
    """The effect. Yours goes here: in the same transaction as the id."""
    database.execute(
        "INSERT INTO received (type, aggregate_id, event) VALUES (?, ?, ?)",
        (event["type"], event["aggregate_id"], json.dumps(event)),
    )


def take(database, message, s3):
    """True: the event was new."""
    if message.value() is None:  # a tombstone: its delete came before it
        return False
    event = json.loads(message.value())
    if database.execute("INSERT OR IGNORE INTO seen (id) VALUES (?)", (event["id"],)).rowcount == 0:
        return False
    apply(database, resolve(event, s3))
    return True


def consume(consumer, database, s3, until_end):
    """Counts what was new and what was not."""
    new = repeated = 0
    ends = set()
    while True:
        messages = consumer.consume(num_messages=100, timeout=1.0)
        with database:  # commits, or rolls back when anything fails
            for message in messages:
                if message.error() is None:
                    ends.discard(message.partition())
                    if take(database, message, s3):
                        new += 1
                    else:
                        repeated += 1
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ends.add(message.partition())
                else:
                    raise KafkaException(message.error())
        if any(message.error() is None for message in messages):
            consumer.commit(asynchronous=False)
        if until_end and ends and len(ends) == len(consumer.assignment()):
            return new, repeated


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--until-end", action="store_true", help="end at the end of the topic")
    arguments = parser.parse_args()
    s3 = boto3.client("s3")
    database = sqlite3.connect(arguments.database)
    database.executescript(SCHEMA)
    consumer = Consumer({
        "bootstrap.servers": arguments.brokers,
        "group.id": arguments.group,
        "isolation.level": "read_committed",  # what an aborted transaction left is not an event
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,  # offsets follow the database
        "enable.partition.eof": True,
    })
    consumer.subscribe([arguments.topic])
    try:
        new, repeated = consume(consumer, database, s3, arguments.until_end)
    finally:
        consumer.close()  # others take over at once, and not when its session has timed out
    print(f"{new} new, {repeated} repeated")


if __name__ == "__main__":
    main()
