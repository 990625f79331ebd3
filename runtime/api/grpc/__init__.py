"""The gRPC service. `proto/v1/moorage.proto` says what it promises."""
