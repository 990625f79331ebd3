"""The network APIs. `proto/v1/moorage.proto` says what the gRPC one promises."""
