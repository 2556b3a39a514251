from sensorium.actors._judge_py import Index as Index
from sensorium.actors._judge_py import judge as judge
from sensorium.actors._judge_py import number_test as number_test
from sensorium.actors._judge_py import range_test as range_test
from sensorium.actors._judge_py import z_score_test as z_score_test
