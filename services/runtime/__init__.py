"""What every service of Skerry stands on: servers, channels, errors, settings, telemetry, clocks and ids.

Nothing here knows a service; the services know this package, the generated stubs and libraries, and never one another.
"""
