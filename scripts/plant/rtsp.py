"""An RTSP camera for the fake plant: rtsp.py PORT

Serves moving test pictures as JPEG at rtsp://127.0.0.1:PORT/cam. Needs Debian's python3-gi and
gir1.2-gst-rtsp-server-1.0.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=5/1"
    " ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
camera = GstRtspServer.RTSPMediaFactory()
camera.set_launch(PIPELINE)
camera.set_shared(True)
server.get_mount_points().add_factory("/cam", camera)
if server.attach(None) == 0:
    sys.exit(f"port {sys.argv[1]} cannot be had")
GLib.MainLoop().run()
