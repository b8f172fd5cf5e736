"""Publishes user-creation messages. Cheap to import: only `publisher.client` brings Pub/Sub in."""
