//! Which Debian package brings which GStreamer element, so that an error can say what to type.

/// Element, package, what it is for. Sources and decoders that cameras and files need.
pub(super) const ELEMENTS: &[(&str, &str, &str)] = &[
    ("appsink", BASE, "every camera"),
    ("videoconvert", BASE, "every camera"),
    ("videotestsrc", BASE, "test pictures"),
    ("videoscale", BASE, "scaling"),
    ("videorate", BASE, "frame rates"),
    ("decodebin", BASE, "decoding by content"),
    ("uridecodebin", BASE, "decoding by content"),
    ("rawvideoparse", BAD, "raw files"),
    ("v4l2src", GOOD, "USB and capture cards"),
    ("rtspsrc", GOOD, "network cameras (RTSP)"),
    ("rtph264depay", GOOD, "H.264 over RTSP"),
    ("rtph265depay", GOOD, "H.265 over RTSP"),
    ("rtpjpegdepay", GOOD, "JPEG over RTSP"),
    ("udpsrc", GOOD, "RTP over UDP"),
    ("souphttpsrc", GOOD, "pictures over HTTP"),
    ("multifilesrc", GOOD, "numbered picture files"),
    ("imagefreeze", GOOD, "one picture repeated"),
    ("jpegdec", GOOD, "JPEG"),
    ("pngdec", GOOD, "PNG"),
    ("videocrop", GOOD, "cropping"),
    ("videoflip", GOOD, "turning"),
    ("qtdemux", GOOD, "MP4 files"),
    ("matroskademux", GOOD, "Matroska files"),
    ("aravissrc", "libaravis-0.8-0", "GigE Vision and USB3 Vision cameras"),
    ("bayer2rgb", BAD, "Bayer cameras"),
    ("h264parse", BAD, "H.264"),
    ("h265parse", BAD, "H.265"),
    ("jpegparse", BAD, "JPEG streams"),
    ("openh264dec", BAD, "H.264"),
    ("shmsrc", BAD, "frames from another process"),
    ("watchdog", BAD, "timeouts inside a pipeline"),
    ("avdec_h264", LIBAV, "H.264"),
    ("avdec_h265", LIBAV, "H.265"),
    ("avdec_mjpeg", LIBAV, "Motion JPEG"),
    ("x264enc", "gstreamer1.0-plugins-ugly", "making H.264"),
];

const BASE: &str = "gstreamer1.0-plugins-base";
const GOOD: &str = "gstreamer1.0-plugins-good";
const BAD: &str = "gstreamer1.0-plugins-bad";
const LIBAV: &str = "gstreamer1.0-libav";

/// What to type about an element that is not there; `installed` are the elements that are.
pub(super) fn hint_for(element: &str, installed: &[String]) -> String {
    if let Some((_, package, _)) = ELEMENTS.iter().find(|(name, ..)| *name == element) {
        return format!("Install it with: sudo apt install {package}");
    }
    let known = ELEMENTS.iter().map(|(name, ..)| *name).chain(installed.iter().map(String::as_str));
    let nearest = known
        .map(|name| (strsim::damerau_levenshtein(name, element), name))
        .min_by_key(|&(distance, name)| (distance, name.len()))
        .filter(|&(distance, _)| distance <= 2.max(element.len() / 4));
    match nearest {
        Some((_, name)) => format!("Did you mean `{name}`?"),
        None => {
            "List what is installed with: gst-inspect-1.0 (sudo apt install gstreamer1.0-tools)".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_element_names_its_package_and_a_slip_of_the_pen_the_right_name() {
        assert!(hint_for("aravissrc", &[]).ends_with("apt install libaravis-0.8-0"));
        assert_eq!(hint_for("videotestsr", &[]), "Did you mean `videotestsrc`?");
        assert_eq!(hint_for("myspecialsorc", &["myspecialsrc".to_owned()]), "Did you mean `myspecialsrc`?");
        assert!(hint_for("zzzzzzzzzzzz", &[]).contains("gst-inspect-1.0"));
    }
}
