"""What every service of Skerry stands on: servers, channels, errors, settings, telemetry, clocks and ids.

Nothing here knows a service; the services know this package, the generated stubs and libraries, and never one another.
"""

import os

# gRPC's core reads these when it is loaded. It would write plain lines into the log, also of what is no error, and run
# handlers whenever this process starts another one.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
