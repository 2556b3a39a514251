from sensorium.actors._panes_py import Panes as Panes
