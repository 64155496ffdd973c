"""Start the node: ``ros2 launch mapengine_ros mapengine.launch.py engine:=build/engine``."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """Return the node, and RViz where it is asked for."""
    share = FindPackageShare("mapengine_ros")
    arguments = [
        DeclareLaunchArgument("engine", description="folder of the engine bundle"),
        DeclareLaunchArgument(
            "parameters",
            default_value=PathJoinSubstitution([share, "config", "mapengine.yaml"]),
            description="file of parameters",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
        DeclareLaunchArgument("rviz", default_value="false", description="show the results in RViz"),
    ]
    node = Node(
        package="mapengine_ros",
        executable="mapengine_node",
        name="mapengine",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("parameters"), {"engine": LaunchConfiguration("engine")}],
        output="screen",
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", PathJoinSubstitution([share, "rviz", "mapengine.rviz"])],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return LaunchDescription([*arguments, node, rviz])
