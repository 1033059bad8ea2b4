"""The reference centre: it stands in for a user's own central API in development, in tests and in small installs.

Its GraphQL holds the origin of what regions keep a replica of (organizations, apps, image aliases, limits, secrets), a
mirror of what regions run, and the legacy conversion that regions take over part by part.
"""
