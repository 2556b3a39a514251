"""Messages about alarms on their way out: who sends them when, and how each kind of target is spoken to."""
