from evergreen.orchestration.dags.maintenance import maintenance_dag

maintenance = maintenance_dag(owner="flight-operations")
