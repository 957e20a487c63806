"""Drawing: functions from arrays to images and HTML, without widgets."""
