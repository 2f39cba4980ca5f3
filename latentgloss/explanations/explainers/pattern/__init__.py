"""The explainer `pattern`: rules (`rules`), learning them (`learning`), saying them (`sentence`), all of it
(`explainer`)."""
